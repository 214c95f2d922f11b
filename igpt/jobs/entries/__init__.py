"""What the workers of each job do. Imported by the worker alone; torch and the like live here."""
