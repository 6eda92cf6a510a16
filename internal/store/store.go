// Package store holds the only SQL against the control database.
package store

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store/db"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is the control database.
type Store struct {
	pool *pgxpool.Pool
	Q
}

// Q runs queries, inside a transaction or outside of one.
type Q struct {
	db *db.Queries
	tx db.DBTX
}

// Open connects and brings the schema to this binary's version. url is a libpq connection string or URI; maxConns bounds the pool.
func Open(ctx context.Context, url string, maxConns int32) (*Store, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, core.Wrap(err, "store.open", "check --database-url")
	}
	cfg.MaxConns = maxConns
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, core.Wrap(err, "store.open", "is the control database running?")
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, &core.Error{Kind: core.KindUnavailable, Op: "store.open", Message: "the control database does not answer",
			Hint: "is it running? check --database-url", Err: err}
	}
	s := &Store{pool: pool, Q: Q{db: db.New(pool), tx: pool}}
	if err := s.migrate(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) migrate(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	// Two servers may start at once: the lock makes one of them wait.
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return err
	}
	conn := stdlib.OpenDBFromPool(s.pool)
	defer conn.Close()
	p, err := goose.NewProvider(goose.DialectPostgres, conn, files, goose.WithSessionLocker(locker))
	if err != nil {
		return core.Wrap(err, "store.migrate", "")
	}
	if _, err := p.Up(ctx); err != nil {
		return core.Wrap(err, "store.migrate", "the control database may belong to a newer bough, or its user may lack CREATE")
	}
	return nil
}

// Close closes every connection.
func (s *Store) Close() { s.pool.Close() }

// Pool gives the queue its connections.
func (s *Store) Pool() *pgxpool.Pool { return s.pool }

// Ping tells whether the control database answers.
func (s *Store) Ping(ctx context.Context) error { return s.pool.Ping(ctx) }

// Tx runs fn in one transaction, again when PostgreSQL asks for it (a deadlock, a serialization failure): fn must have no
// effect outside of the transaction.
func (s *Store) Tx(ctx context.Context, fn func(q Q) error) error {
	for attempt := 0; ; attempt++ {
		err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			return fn(Q{db: db.New(tx), tx: tx})
		})
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && (pgErr.Code == "40P01" || pgErr.Code == "40001") && attempt < 5 {
			continue
		}
		return err
	}
}

// InTx gives the transaction that q is bound to; ok is false outside of one.
func (q Q) InTx() (tx pgx.Tx, ok bool) {
	tx, ok = q.tx.(pgx.Tx)
	return tx, ok
}

// CommitLater lets the transaction's commit return before it is on disk. For records whose loss in a crash of the
// machine is harmless because what they record is lost with it.
func (q Q) CommitLater(ctx context.Context) error {
	_, err := q.tx.Exec(ctx, "SET LOCAL synchronous_commit = off")
	return err
}

// taken tells whether err is a violation of the named unique index.
func taken(err error, index string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "23505" && pgErr.ConstraintName == index
}

// one converts the row of a query that finds one row or none.
func one[R, C any](row R, err error, conv func(R) C, what, id string) (C, error) {
	if err != nil {
		var zero C
		if errors.Is(err, pgx.ErrNoRows) {
			return zero, core.NotFoundf("%s %s not found", what, quoteID(id))
		}
		return zero, core.Wrap(err, "store", "")
	}
	return conv(row), nil
}

func many[R, C any](rows []R, err error, conv func(R) C) ([]C, error) {
	if err != nil {
		return nil, core.Wrap(err, "store", "")
	}
	out := make([]C, len(rows))
	for i, r := range rows {
		out[i] = conv(r)
	}
	return out, nil
}

func internal(err error) error { return core.Wrap(err, "store", "") }

// quoteID keeps a hostile id short and printable in a message.
func quoteID(id string) string {
	if len(id) > 64 {
		id = id[:64] + "…"
	}
	return fmt.Sprintf("%q", id)
}

func nilIfEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// toJSON marshals what cannot fail: maps of strings.
func toJSON(m map[string]string) json.RawMessage {
	if m == nil {
		m = map[string]string{}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func fromJSON(b json.RawMessage) map[string]string {
	var m map[string]string
	if len(b) == 0 || json.Unmarshal(b, &m) != nil {
		return nil
	}
	return m
}
