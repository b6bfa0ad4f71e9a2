"""What runs a job: training, up-scaling recipes, run folders, and the command line."""
