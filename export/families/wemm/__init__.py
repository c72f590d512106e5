"""WeMM-Chat-CN and WeMM-Chat-2k-CN."""
