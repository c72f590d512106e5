"""Files as strangers forge them, read by the product's own readers: each is refused with one clear error, or is sound.

`mutations` changes good files, `subjects` says which reader reads them and what an accepted one is compared with, `worker`
reads many in a process whose memory, time and calls are watched, and ``__main__`` counts.
"""
