"""The processes of a job: how they find each other, wait for each other, and end."""
