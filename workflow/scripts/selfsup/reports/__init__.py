"""What people read: plan, cost, status, curves, pages, a recipe explained. Imports no torch."""
