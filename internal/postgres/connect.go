package postgres

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/boughdb/bough/internal/core"
)

// ConnConfig is how the platform connects to a server over its socket: as AdminRole, whatever the environment says. The
// session's own settings beat those that a database's owner may have attached to the database, and keep password verifiers
// out of the server's log and of pg_stat_statements.
func ConnConfig(socketDir, database string) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig("host=/ port=5432 user=" + AdminRole + " dbname=postgres sslmode=disable passfile=/dev/null")
	if err != nil {
		return nil, core.Wrap(err, "postgres.connect", "a PG* environment variable may be malformed")
	}
	cfg.Host, cfg.Port, cfg.Database = socketDir, SocketPort, database
	cfg.User, cfg.Password = AdminRole, ""
	cfg.TLSConfig, cfg.Fallbacks = nil, nil
	cfg.RuntimeParams = map[string]string{
		"application_name":                    "bough",
		"search_path":                         "pg_catalog",
		"standard_conforming_strings":         "on",
		"client_encoding":                     "UTF8",
		"datestyle":                           "ISO",
		"statement_timeout":                   "0",
		"lock_timeout":                        "0",
		"idle_in_transaction_session_timeout": "0",
		"idle_session_timeout":                "0",
		"synchronous_commit":                  "on",
		"exit_on_error":                       "off",
		"default_transaction_read_only":       "off",
		"default_transaction_isolation":       "read committed",
		"jit":                                 "off",
		"log_statement":                       "none",
		"log_min_duration_statement":          "-1",
		"log_min_error_statement":             "panic",
		"pg_stat_statements.track":            "none",
	}
	cfg.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		// The one that older majors do not know.
		major, _, _ := strings.Cut(conn.ParameterStatus("server_version"), ".")
		if n, _ := strconv.Atoi(major); n < 17 {
			return nil
		}
		return conn.Exec(ctx, "SET transaction_timeout = 0").Close()
	}
	return cfg, nil
}

// Connect opens a session of the platform to one database.
func Connect(ctx context.Context, socketDir, database string) (*pgx.Conn, error) {
	cfg, err := ConnConfig(socketDir, database)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to database %q: %w", database, err)
	}
	return conn, nil
}

// withDatabase runs f in a second session like conn's, to another database of the same server.
func withDatabase(ctx context.Context, conn *pgx.Conn, database string, f func(*pgx.Conn) error) error {
	cfg := conn.Config().Copy()
	cfg.Database = database
	other, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("connect to database %q: %w", database, err)
	}
	defer closeConn(ctx, other)
	return f(other)
}
