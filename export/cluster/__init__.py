"""Lists of independent jobs, carried out in this process or by Ray on many machines, each finished one kept on disk."""
