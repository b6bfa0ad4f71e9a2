"""The browser application: `streamlit run apps/explorer.py`. Widgets and layout only."""
