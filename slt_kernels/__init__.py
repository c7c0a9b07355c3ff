"""Random networks with learned masks, as cheap as their information content."""
