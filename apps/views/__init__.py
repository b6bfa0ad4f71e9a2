"""The explorer's pages, a script each, run by `apps/explorer.py` through st.navigation."""
