"""Pages of the site. A package, so that no folder of this name among installed packages is taken instead."""
