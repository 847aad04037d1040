"""Selective state space scans: the sequential references, the chunked scan and the standard mixer made of it.

Unlike other packages of the house this one re-exports: these four are what others call by name.
"""

from stageline.families.panorama_vlm.scan.dispatch import ssd
from stageline.families.panorama_vlm.scan.mixer import Mamba2Mixer
from stageline.families.panorama_vlm.scan.reference import mamba1_reference, ssd_reference

__all__ = ["Mamba2Mixer", "mamba1_reference", "ssd", "ssd_reference"]
