"""Finding the settings of a recipe by trying some of them on a part of its steps: ``weitune tune``."""
