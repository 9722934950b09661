"""usage.alerts → merchants' own services: signed, repeated until they answer, each alert delivered once."""
