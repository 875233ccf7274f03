"""Quick, Draw! classifiers at full scale."""
