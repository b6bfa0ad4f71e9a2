"""The explorer's pages, a script each, run by `apps/main.py` through st.navigation."""
