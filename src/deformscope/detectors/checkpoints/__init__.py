"""Reading other frameworks' checkpoint files, which are hostile until proven otherwise."""
