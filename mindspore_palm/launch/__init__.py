"""Starting, restarting and ending the processes of a job."""
