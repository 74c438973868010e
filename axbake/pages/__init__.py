"""Pages for people, each one HTML file that holds all it shows: `report` of a model, `overview` of all, `summary` of a run."""
