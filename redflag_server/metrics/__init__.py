"""What a server tells Prometheus of itself. No label holds an id: what there can be of each is counted in tens."""
