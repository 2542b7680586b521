"""Pages for people: the cards of published networks and the report, from templates, with their figures."""
