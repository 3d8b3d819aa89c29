"""Lightning callbacks of golf_lightning: each says when; the library says how. Import them by module or from here."""
