"""Facts of diffusers' pipeline classes: one row for each class that its name and its call do not explain."""
