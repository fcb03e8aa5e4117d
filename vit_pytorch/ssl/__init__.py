"""What two or more learning methods use: the models that they teach, masks, views, teachers, probes."""
