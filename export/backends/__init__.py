"""Graph formats: one folder and one record each; `registry` knows them all."""
