"""What is measured and how it is told: protocol, statistics, peers, profiles, reports."""
