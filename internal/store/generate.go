package store

//go:generate go -C ../../tools tool sqlc generate -f ../internal/store/sqlc.yaml
