"""The model that users hold: loading, precision, prediction, saving, sharing."""
