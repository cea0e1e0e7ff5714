"""An account of a model as a graph: for networkx, and as text that draws itself. Read `site_graph.py` first."""
