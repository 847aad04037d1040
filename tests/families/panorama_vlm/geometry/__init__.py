"""Views, tokens and pixels of panoramas."""
