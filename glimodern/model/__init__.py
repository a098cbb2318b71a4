"""GLiModern, the model class of users: building, loading, precision, prediction, saving, sharing."""
