"""Text for people: what comes from files is escaped, and numbers are written in one way."""
