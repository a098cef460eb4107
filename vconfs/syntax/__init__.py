"""How people write things, and how text is shown to them: sizes, times, paths, options."""
