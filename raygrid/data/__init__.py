"""Images as memory-mapped uint8 arrays, named by the hash of their content.

    manifest.py     what a data set holds; its content hash does not depend on how it was cut in files
    shards.py       arrays to `.npy` bytes and digests
    cache.py        the node's cache: whole or absent, verified once
    arrays.py       Images, Arrays; publish to the store, open from it; statistics of a task
    known.py        data sets that raygrid knows by name: facts pinned, pixels fetched when wanted
    bundled.py, cifar10.py, ilsvrc2012.py     those data sets
    sources.py, parquet.py, ground_truth.py   ingest: folder, Parquet or label file to a list of images
    decode.py, making.py, joining.py          ingest: image file to pixels, list to shards, shards to a data set
    progress.py     how far ingest or a download is
    stream.py       ordered, augmented batches

numpy, pydantic, Pillow; never Ray. Nothing is unpickled from a store or a cache.
"""
