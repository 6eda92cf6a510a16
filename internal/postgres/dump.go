package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
)

const (
	dumpTimeout  = 60 * time.Second
	dumpLockWait = 5 * time.Second
	// MaxSchemaBytes bounds the text of a schema.
	MaxSchemaBytes = 32 << 20
)

// Dumper is an installed pg_dump.
type Dumper struct {
	Major  int
	BinDir string // absolute; may hold pg_restore, too
}

// Dumper finds the pg_dump for a server of a major version: that version's, or else the nearest newer one. It looks where Find
// does, but needs no server there. It is KindUnprocessable when there is none; the message says what to install.
func (f *Builds) Dumper(ctx context.Context, server int) (Dumper, error) {
	p := f.places()
	best := Dumper{}
	for _, dir := range slices.Concat(slices.Concat(p.named...), p.system, p.own) {
		dir, err := filepath.Abs(dir)
		if err != nil || !runnable(filepath.Join(dir, "pg_dump")) {
			continue
		}
		version, err := runVersion(ctx, filepath.Join(dir, "pg_dump"), nil)
		if ctx.Err() != nil {
			return Dumper{}, ctx.Err()
		}
		major, convErr := strconv.Atoi(leadingDigits(version))
		if err == nil && convErr == nil && major >= server && (best.Major == 0 || major < best.Major) {
			best = Dumper{Major: major, BinDir: dir}
		}
	}
	if best.Major == 0 {
		return Dumper{}, noDumper("pg_dump", server, fmt.Sprintf("%d or newer", server))
	}
	return best, nil
}

// runnable tells whether there is a program of PostgreSQL's own. Debian's wrapper, which pretends to be all of them, chooses a
// version by rules of its own.
func runnable(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	if err != nil || filepath.Base(real) == "pg_wrapper" {
		return false
	}
	info, err := os.Stat(real)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

func noDumper(program string, server int, versions string) error {
	return &core.Error{Kind: core.KindUnprocessable, Code: "PG_DUMP_MISSING", Op: "postgres.dumper", Message: fmt.Sprintf(
		"this needs PostgreSQL's client program %s %s, and the server's machine has none; its operator can install it "+
			"(Debian and Ubuntu: the package postgresql-client-%d, from apt.postgresql.org where the system has another version); no restart is needed",
		program, versions, server)}
}

// target is a connection string for a client program: the platform's own sessions, or those of role, in a database. What owners
// attach to their databases (ALTER DATABASE … SET) does not change what the program sees.
func target(socketDir, role, database string) string {
	options := []string{
		"role=none", "quote_all_identifiers=off", "standard_conforming_strings=on", "TimeZone=UTC", "statement_timeout=0", "lock_timeout=0",
		"idle_session_timeout=0", "default_transaction_read_only=off", "default_transaction_isolation=read\\ committed", "search_path=pg_catalog",
	}
	if role == AdminRole { // a superuser's: queries of the platform stay out of logs and statistics
		options = append(options, "log_statement=none", "log_min_duration_statement=-1", "log_min_error_statement=panic", "pg_stat_statements.track=none")
	}
	quote := func(v string) string { return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v) + "'" }
	return fmt.Sprintf("host=%s port=%d user=%s dbname=%s application_name=bough sslmode=disable passfile=/nonexistent options=%s",
		quote(socketDir), SocketPort, quote(role), quote(database), quote("-c "+strings.Join(options, " -c ")))
}

// command prepares one of the client programs.
func (d Dumper) command(ctx context.Context, program string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.CommandContext(ctx, filepath.Join(d.BinDir, program), append([]string{"--no-password"}, args...)...)
	cmd.Env, cmd.Dir = ServerEnv(), "/"
	cmd.WaitDelay = 5 * time.Second
	errs := new(bytes.Buffer)
	cmd.Stderr = &limited{to: errs, left: 64 << 10}
	return cmd, errs
}

// dumpArgs are pg_dump's for the definitions in a database, and nothing of its data.
func (d Dumper) dumpArgs(socketDir, database string, more ...string) []string {
	args := append([]string{"--schema-only", "--lock-wait-timeout=" + strconv.FormatInt(dumpLockWait.Milliseconds(), 10)}, more...)
	if d.Major >= 18 {
		args = append(args, "--no-statistics")
	}
	return append(args, "-d", target(socketDir, AdminRole, database))
}

// limited keeps the beginning of what is written.
type limited struct {
	to   io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.to.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Schema returns the definition of everything in a database as SQL, without what tells two equal schemas apart: versions and
// tokens of the program. Passwords of user mappings are hidden, subscriptions, whose connection strings hold passwords, left
// out. The platform may connect to the server on socketDir. A schema that is too large is KindUnprocessable, one whose tables
// are locked KindLocked.
func (d Dumper) Schema(ctx context.Context, socketDir, database string) (string, error) {
	const op = "postgres.schema"
	limit, cancel := context.WithTimeout(ctx, dumpTimeout)
	defer cancel()
	cmd, errs := d.command(limit, "pg_dump", d.dumpArgs(socketDir, database, "--no-subscriptions")...)
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return "", core.Wrap(err, op, "")
	}
	out, readErr := io.ReadAll(io.LimitReader(stdout, MaxSchemaBytes+1))
	if len(out) > MaxSchemaBytes {
		cancel()
		_ = cmd.Wait()
		return "", tooLarge(database)
	}
	if err := errors.Join(cmd.Wait(), readErr); err != nil {
		return "", dumpError(ctx, limit, err, errs.String(), op)
	}
	return hidePasswords(stripDump(string(out))), nil
}

func tooLarge(database string) error {
	return core.Errorf(core.KindUnprocessable, "SCHEMA_TOO_LARGE", "the schema of database %q is larger than %d MiB; use pg_dump", database, MaxSchemaBytes>>20)
}

// dumpError says why a client program failed: ctx is the caller's, limit the program's.
func dumpError(ctx, limit context.Context, err error, output, op string) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case limit.Err() != nil:
		return &core.Error{Kind: core.KindUnavailable, Op: op, Err: err, Message: "reading the schema took too long; try again when the compute is less busy"}
	case strings.Contains(output, "due to statement timeout"): // pg_dump's wait for locks; LC_ALL is ours
		return &core.Error{Kind: core.KindLocked, Op: op, Err: err, RetryAfter: 3 * time.Second,
			Message: "the schema cannot be read while a transaction holds a lock on one of its tables; try again when it has ended"}
	}
	return core.Wrap(err, op, tail(strings.TrimSpace(output), 10))
}

const dumpEnd = "\n--\n-- PostgreSQL database dump complete\n--\n"

// stripDump takes out of a dump what differs between programs and calls: comments with versions, and the tokens of \restrict and
// \unrestrict. They are in its head, before the first setting, and behind its last comment only: in between is what users wrote.
func stripDump(dump string) string {
	head, body, ok := strings.Cut(dump, "\nSET ")
	if !ok {
		return dump
	}
	var kept strings.Builder
	for line := range strings.Lines(head + "\n") {
		switch {
		case line == "\n", strings.HasPrefix(line, "-- Dumped "), strings.HasPrefix(line, `\restrict `):
		default:
			kept.WriteString(line)
		}
	}
	if i := strings.LastIndex(body, dumpEnd); i >= 0 {
		body = body[:i+len(dumpEnd)]
	}
	return kept.String() + "\nSET " + body
}

var (
	userMapping = regexp.MustCompile(`(?m)^CREATE USER MAPPING FOR .* OPTIONS \(\n(?:    .*\n)*\);$`)
	secret      = regexp.MustCompile(`(?m)^(    "?\w*(?:password|passphrase|secret|token|key)\w*"?) '(?:[^']|'')*'`)
)

func hidePasswords(dump string) string {
	return userMapping.ReplaceAllStringFunc(dump, func(s string) string { return secret.ReplaceAllString(s, "$1 '********'") })
}

// Table is a table as ReadTables describes it; the JSON is that of the API.
type Table struct {
	Schema      string       `json:"schema"`
	Name        string       `json:"name"`
	Columns     []Column     `json:"columns"`
	Constraints []Constraint `json:"constraints"`
}

// Column is a column of a table.
type Column struct {
	Name      string `json:"name"`
	Type      string `json:"type"` // as PostgreSQL writes it, with modifiers
	Nullable  bool   `json:"nullable"`
	Generated bool   `json:"generated"` // computed from others
}

// Constraint is a primary key, a unique constraint or a foreign key.
type Constraint struct {
	Type    string   `json:"type"` // primary_key, unique, foreign_key
	Name    string   `json:"name"`
	Columns []string `json:"columns"`
	Refers  *struct {
		Schema  string   `json:"schema"`
		Table   string   `json:"table"`
		Columns []string `json:"columns"`
	} `json:"referenced_table"` // of a foreign key
}

// tablesSQL describes one table in each row. attnames orders a constraint's columns as it names them.
const tablesSQL = `
WITH names AS (
	SELECT k.oid, side, jsonb_agg(a.attname ORDER BY u.ord) AS list
	FROM pg_constraint k CROSS JOIN LATERAL (VALUES (0, k.conrelid, k.conkey), (1, k.confrelid, k.confkey)) s(side, rel, keys)
		CROSS JOIN LATERAL unnest(s.keys) WITH ORDINALITY u(num, ord) JOIN pg_attribute a ON a.attrelid = s.rel AND a.attnum = u.num
	WHERE k.contype IN ('p', 'u', 'f') GROUP BY k.oid, side
)
SELECT jsonb_build_object('schema', n.nspname, 'name', c.relname,
	'columns', (SELECT coalesce(jsonb_agg(jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
			'nullable', NOT a.attnotnull, 'generated', a.attgenerated <> '') ORDER BY a.attnum), '[]')
		FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
	'constraints', (SELECT coalesce(jsonb_agg(jsonb_build_object(
			'type', CASE k.contype WHEN 'p' THEN 'primary_key' WHEN 'u' THEN 'unique' ELSE 'foreign_key' END,
			'name', k.conname, 'columns', own.list,
			'referenced_table', CASE WHEN k.contype = 'f' THEN jsonb_build_object('schema', fn.nspname, 'table', f.relname, 'columns', other.list) END)
			ORDER BY k.contype = 'p' DESC, k.contype = 'u' DESC, k.conname), '[]')
		FROM pg_constraint k JOIN names own ON own.oid = k.oid AND own.side = 0
			LEFT JOIN names other ON other.oid = k.oid AND other.side = 1
			LEFT JOIN pg_class f ON f.oid = k.confrelid LEFT JOIN pg_namespace fn ON fn.oid = f.relnamespace
		WHERE k.conrelid = c.oid))::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
	AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"`

// Readable tells whether there is a user's database of that name that lets sessions in.
func Readable(ctx context.Context, conn *pgx.Conn, database string) (ok bool, err error) {
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1 AND datallowconn AND datconnlimit <> -2)`, database).Scan(&ok)
	return ok && !ReservedDatabase(database), core.Wrap(err, "postgres.readable", "")
}

// ReadTables describes the tables of a database, those of extensions left out; conn is a session to another one of the same
// server. Together they are no larger than a schema's text may be.
func ReadTables(ctx context.Context, conn *pgx.Conn, database string) (tables []Table, err error) {
	ctx, cancel := context.WithTimeout(ctx, dumpTimeout)
	defer cancel()
	err = withDatabase(ctx, conn, database, func(c *pgx.Conn) (err error) {
		tables, err = readTables(ctx, c)
		return err
	})
	return tables, core.Wrap(err, "postgres.read_tables", "")
}

func readTables(ctx context.Context, conn *pgx.Conn) ([]Table, error) {
	rows, err := conn.Query(ctx, tablesSQL)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	tables, size := []Table{}, 0
	for rows.Next() {
		var doc string
		if err := rows.Scan(&doc); err != nil {
			return nil, err
		}
		if size += len(doc); size > MaxSchemaBytes {
			return nil, tooLarge(conn.Config().Database)
		}
		var t Table
		if err := json.Unmarshal([]byte(doc), &t); err != nil {
			return nil, err
		}
		tables = append(tables, t)
	}
	return tables, rows.Err()
}
