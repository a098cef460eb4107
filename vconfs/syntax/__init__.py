"""How users write sizes, times, paths and options, and how text is shown to them."""
