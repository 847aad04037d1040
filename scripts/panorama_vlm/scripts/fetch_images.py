"""Fetches the pictures that CSV files name by http(s) address into a local folder, where prepare finds them.

    python scripts/fetch_images.py data/quic360/train.csv --cache-dir data/quic360/pictures

Run it again after a failure: what is complete stays, what is half there is continued.
"""

from stageline.families.panorama_vlm.fetching import main

if __name__ == "__main__":
    raise SystemExit(main())
