"""An account as a page: one HTML file that needs nothing else. Read `page.py` first; browsers read `assets/`."""
