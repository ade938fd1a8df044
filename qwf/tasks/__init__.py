"""Which tasks follow from a template, and who runs them."""
