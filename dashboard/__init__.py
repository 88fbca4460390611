"""What the pages share: the Streamlit dashboard over `defuse_core`."""
