"""panorama_vlm: answers about 360 degree panoramas, a vision-language model trained in stages."""
