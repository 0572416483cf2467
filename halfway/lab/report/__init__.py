"""Pages: templates, style sheet, figures of a whole run."""
