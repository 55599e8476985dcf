"""Synthetic corpus: parallel text from a phrasebook and CLDR, spoken by espeak-ng."""
