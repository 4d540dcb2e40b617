"""What is predicted: images and texts of users, encoded."""
