"""A family's declared prompt in the forms that are written into packages."""
