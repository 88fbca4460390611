"""Regions as a regression suite: images and labels that any later classifier is checked on."""
