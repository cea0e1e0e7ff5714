"""From a generated kernel's text to a launch: loading, launching, a whole layer, and which variant is fastest."""
