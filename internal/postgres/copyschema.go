package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
)

// copyTimeout bounds one run of a client program while a schema is copied.
const copyTimeout = 5 * time.Minute

// Restores tells whether the pg_restore beside this pg_dump works with a server of a major version: those from 17 on send
// settings that older servers do not know.
func (d Dumper) Restores(server int) error {
	if (d.Major >= 17) != (server >= 17) || !runnable(d.BinDir+"/pg_restore") {
		return noDumper("pg_restore", server, strconv.Itoa(server))
	}
	return nil
}

// CopySchema gives a fresh cluster, one that Bootstrap has made, the structure of another of the same version: roles with their
// passwords, databases and everything in them but rows, with owners, privileges, comments and settings. Subscriptions are
// disabled and have no slot. What the database postgres holds is not copied. It cannot be repeated on the same cluster.
//
// The platform may connect to both servers. The source's users may have written functions that PostgreSQL calls while it reads
// definitions (of generated columns, of partitions): so nothing that holds an expression is made by a superuser, but by a role
// that may do nothing outside of the new database, and owners follow. A definition that cannot be copied is KindUnprocessable.
func (d Dumper) CopySchema(ctx context.Context, sourceDir, freshDir string) error {
	const op = "postgres.copy_schema"
	from, err := Connect(ctx, sourceDir, AdminDatabase)
	if err != nil {
		return core.Wrap(err, op, "")
	}
	defer closeConn(ctx, from)
	to, err := Connect(ctx, freshDir, AdminDatabase)
	if err != nil {
		return core.Wrap(err, op, "")
	}
	defer closeConn(ctx, to)
	if err := DropDatabase(ctx, to, DefaultDatabase); err != nil {
		return err
	}
	if err := DropRole(ctx, to, DefaultOwner); err != nil {
		return err
	}
	if err := copyRoles(ctx, from, to); err != nil {
		return core.Wrap(err, op, "")
	}
	names, err := copiedDatabases(ctx, from)
	if err != nil {
		return core.Wrap(err, op, "")
	}
	maker := "bough_maker_" + strings.ReplaceAll(core.NewUUID()[:8], "-", "")
	if _, err := to.Exec(ctx, "CREATE ROLE "+quote(maker)+" LOGIN"); err != nil {
		return core.Wrap(err, op, "")
	}
	for _, name := range names {
		c := schemaCopy{Dumper: d, sourceDir: sourceDir, freshDir: freshDir, database: name, maker: maker, from: from, to: to}
		if err := c.run(ctx); err != nil {
			return core.Wrap(err, op, "database "+name)
		}
	}
	if _, err := DetachSubscriptions(ctx, to); err != nil {
		return err
	}
	return DropRole(ctx, to, maker)
}

// copiedDatabases lists the source's databases but those of every cluster.
func copiedDatabases(ctx context.Context, from *pgx.Conn) ([]string, error) {
	rows, err := from.Query(ctx, `SELECT datname::text, datallowconn FROM pg_database WHERE datconnlimit <> -2 ORDER BY oid`)
	if err != nil {
		return nil, err
	}
	var names []string
	var name string
	var open bool
	_, err = pgx.ForEachRow(rows, []any{&name, &open}, func() error {
		if ReservedDatabase(name) {
			return nil
		}
		if !open {
			return core.Errorf(core.KindUnprocessable, "", "the schema of database %q cannot be read, because it lets nobody connect; ALTER DATABASE … ALLOW_CONNECTIONS true first", name)
		}
		names = append(names, name)
		return nil
	})
	return names, err
}

// schemaCopy is the copy of one database.
type schemaCopy struct {
	Dumper
	sourceDir, freshDir string
	database, maker     string
	from, to            *pgx.Conn // to other databases of the two servers
	archive             []byte    // of pg_dump, in its custom format
}

// entry is one in the archive's list.
type entry struct {
	line string // as pg_restore wants it back
	oid  string // of the object in the source; "0" for what belongs to another entry
	kind string // the beginning of its description, such as "TABLE public people owner"
}

func (e entry) is(kinds ...string) bool {
	return slices.ContainsFunc(kinds, func(k string) bool { return strings.HasPrefix(e.kind, k+" ") })
}

// What evaluates nothing and may take a superuser, and what is made before all that has expressions. The database itself is not
// in the list.
var (
	inert   = []string{"ACL", "DEFAULT ACL", "COMMENT", "SECURITY LABEL", "USER MAPPING", "PUBLICATION", "SUBSCRIPTION", "EVENT TRIGGER"}
	servers = []string{"FOREIGN DATA WRAPPER", "SERVER"}
)

func (c *schemaCopy) run(ctx context.Context) error {
	if err := c.dump(ctx); err != nil {
		return err
	}
	entries, err := c.list(ctx)
	if err != nil {
		return err
	}
	made := map[string]bool{}
	of := func(want func(entry) bool) []entry {
		return slices.DeleteFunc(slices.Clone(entries), func(e entry) bool { return !want(e) })
	}
	steps := []func() error{
		func() error { return createLike(ctx, c.from, c.to, c.database, c.maker) },
		func() error {
			return c.both(ctx, func(from, to *pgx.Conn) (err error) { made, err = c.prepare(ctx, from, to); return err })
		},
		func() error {
			return c.restore(ctx, AdminRole, c.database, of(func(e entry) bool { return e.is(servers...) }), "--no-owner")
		},
		func() error { return c.both(ctx, func(_, to *pgx.Conn) error { return c.giveServers(ctx, to) }) },
		func() error {
			return c.restore(ctx, c.maker, c.database, of(func(e entry) bool {
				return !e.is(inert...) && !e.is(servers...) && !e.is("EXTENSION") && (!e.is("SCHEMA") || !made[e.oid])
			}), "--no-owner", "--no-tablespaces")
		},
		func() error { return c.both(ctx, func(from, to *pgx.Conn) error { return c.giveAway(ctx, from, to) }) },
		func() error {
			return c.restore(ctx, AdminRole, c.database, of(func(e entry) bool { return e.is(inert...) }))
		},
		func() error { return copyDatabase(ctx, c.from, c.to, c.database) }, // its settings last: they hold in all sessions
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// both runs f with a session to the database on either side.
func (c *schemaCopy) both(ctx context.Context, f func(from, to *pgx.Conn) error) error {
	return withDatabase(ctx, c.from, c.database, func(from *pgx.Conn) error {
		return withDatabase(ctx, c.to, c.database, func(to *pgx.Conn) error { return f(from, to) })
	})
}

func (c *schemaCopy) dump(ctx context.Context) error {
	const op = "postgres.dump_schema"
	out, err := c.output(ctx, dumpTimeout, "pg_dump", c.dumpArgs(c.sourceDir, c.database, "--format=custom", "--compress=0")...)
	if err != nil {
		return core.Wrap(err, op, "")
	}
	c.archive = out
	return nil
}

var listLine = regexp.MustCompile(`^\d+; \d+ (\d+) (.*)$`)

// list reads the archive's table of contents.
func (c *schemaCopy) list(ctx context.Context) ([]entry, error) {
	out, err := c.output(ctx, copyTimeout, "pg_restore", "--list")
	if err != nil {
		return nil, err
	}
	var entries []entry
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		if m := listLine.FindStringSubmatch(line); m != nil {
			entries = append(entries, entry{line: line, oid: m[1], kind: m[2]})
		}
	}
	return entries, nil
}

// output runs a client program with the archive, where there is one, as its input, and returns what it prints.
func (c *schemaCopy) output(ctx context.Context, limit time.Duration, program string, args ...string) ([]byte, error) {
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd, errs := c.command(bounded, program, args...)
	if c.archive != nil {
		cmd.Stdin = bytes.NewReader(c.archive)
	}
	var out bytes.Buffer
	cmd.Stdout = &capped{to: &out, stop: cancel}
	err := cmd.Run()
	if out.Len() > MaxSchemaBytes {
		return nil, tooLarge(c.database)
	}
	if err != nil {
		return nil, dumpError(ctx, bounded, err, errs.String(), "postgres."+program)
	}
	return out.Bytes(), nil
}

// capped stops a program that prints more than a schema may have.
type capped struct {
	to   *bytes.Buffer
	stop context.CancelFunc
}

func (c *capped) Write(p []byte) (int, error) {
	if c.to.Len() > MaxSchemaBytes {
		c.stop()
		return 0, io.ErrShortWrite
	}
	return c.to.Write(p)
}

// restore makes some of what is in the archive, in the archive's order, and stops at the first error.
func (c *schemaCopy) restore(ctx context.Context, role, database string, entries []entry, args ...string) error {
	const op = "postgres.restore_schema"
	if len(entries) == 0 {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	list, feed, err := os.Pipe()
	if err != nil {
		return core.Wrap(err, op, "")
	}
	defer list.Close()
	cmd, errs := c.command(bounded, "pg_restore", append(args, "--exit-on-error", "--use-list=/dev/fd/3", "-d", target(c.freshDir, role, database))...)
	cmd.Stdin, cmd.ExtraFiles = bytes.NewReader(c.archive), []*os.File{list}
	if err := cmd.Start(); err != nil {
		return core.Wrap(errors.Join(err, feed.Close()), op, "")
	}
	_ = list.Close() // the program's end of it stays: writing to a program that has ended is an error, not a wait
	for _, e := range entries {
		if _, err = io.WriteString(feed, e.line+"\n"); err != nil {
			break // the program says why
		}
	}
	_ = feed.Close()
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case bounded.Err() != nil:
		return core.Errorf(core.KindUnprocessable, "", "copying the schema of database %q took longer than %v", c.database, copyTimeout)
	case err != nil:
		return &core.Error{Kind: core.KindUnprocessable, Code: "SCHEMA_COPY_FAILED", Op: op, Err: err, Hint: tail(strings.TrimSpace(errs.String()), 20),
			Message: fmt.Sprintf("the schema of database %q cannot be copied: %s", c.database, restoreProblem(errs.String()))}
	}
	return nil
}

// restoreProblem is what pg_restore complained of, in a line. It names nothing but the users' own things.
func restoreProblem(output string) string {
	for line := range strings.Lines(output) {
		if _, problem, ok := strings.Cut(line, "error: "); ok {
			if _, short, ok := strings.Cut(problem, "ERROR:  "); ok {
				problem = short
			}
			return strings.TrimSpace(problem)
		}
	}
	return "pg_restore failed"
}

// prepare makes what comes before all definitions: the schemas that extensions are in, and the extensions, which only hold the
// code of their packages. It returns the schemas' OIDs in the source. The maker owns the database while it is filled.
func (c *schemaCopy) prepare(ctx context.Context, from, to *pgx.Conn) (made map[string]bool, err error) {
	maker := quote(c.maker)
	var public bool
	if err := from.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'public')").Scan(&public); err != nil {
		return nil, err
	}
	sql := "ALTER SCHEMA public OWNER TO " + maker
	if !public {
		sql = "DROP SCHEMA public"
	}
	if _, err := to.Exec(ctx, sql); err != nil {
		return nil, err
	}
	type extension struct {
		Name, Version, Owner, Schema, SchemaOID string
		Own                                     bool // the schema is the extension's
	}
	rows, err := from.Query(ctx, `SELECT x.extname::text, x.extversion, pg_get_userbyid(x.extowner)::text, n.nspname::text, n.oid::text,
			EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
		FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace ORDER BY x.oid`)
	if err != nil {
		return nil, err
	}
	extensions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[extension])
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(extensions, func(x extension) bool { return x.Name == "plpgsql" }) {
		if _, err := to.Exec(ctx, "DROP EXTENSION IF EXISTS plpgsql"); err != nil {
			return nil, err
		}
	}
	made = map[string]bool{}
	for _, x := range extensions {
		if x.Name == "plpgsql" {
			continue
		}
		in := ""
		if !x.Own {
			in = " SCHEMA " + quote(x.Schema)
			if !made[x.SchemaOID] && x.Schema != "public" && !strings.HasPrefix(x.Schema, "pg_") {
				if _, err := to.Exec(ctx, "CREATE SCHEMA "+quote(x.Schema)+" AUTHORIZATION "+maker); err != nil {
					return nil, err
				}
				made[x.SchemaOID] = true
			}
		}
		if err := createExtension(ctx, to, x.Name, in, x.Version, x.Owner); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// createExtension makes an extension of the source's version, or the installed one where there is no way to that.
func createExtension(ctx context.Context, to *pgx.Conn, name, in, version, owner string) error {
	create := "CREATE EXTENSION " + quote(name) + in
	_, err := to.Exec(ctx, create+" VERSION "+literal(version))
	if err != nil {
		_, err = to.Exec(ctx, create)
	}
	if err != nil {
		return core.Errorf(core.KindUnprocessable, "SCHEMA_COPY_FAILED", "the extension %q cannot be created: %s", name, serverMessage(err))
	}
	if owner == AdminRole {
		return nil
	}
	// As ALTER … OWNER would do it, which extensions have not.
	_, err = to.Exec(ctx, `WITH x AS (
			UPDATE pg_extension SET extowner = r.oid FROM pg_authid r WHERE extname = $1 AND r.rolname = $2 RETURNING pg_extension.oid, r.oid AS role)
		INSERT INTO pg_shdepend (dbid, classid, objid, objsubid, refclassid, refobjid, deptype)
		SELECT (SELECT oid FROM pg_database WHERE datname = current_database()), 'pg_extension'::regclass, x.oid, 0, 'pg_authid'::regclass, x.role, 'o' FROM x`,
		name, owner)
	return err
}

// giveServers lets the maker use foreign servers.
func (c *schemaCopy) giveServers(ctx context.Context, to *pgx.Conn) error {
	rows, err := to.Query(ctx, "SELECT srvname::text FROM pg_foreign_server WHERE oid >= 16384 AND srvowner = 10")
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, name := range names {
		if err == nil {
			_, err = to.Exec(ctx, "ALTER SERVER "+quote(name)+" OWNER TO "+quote(c.maker))
		}
	}
	return err
}

// ownersSQL gives ALTER … OWNER TO for all that is in the database and is not the bootstrap superuser's. What belongs to a
// table follows it; extensions, publications and user mappings have their owners already, rows of large objects are not copied.
const ownersSQL = `
SELECT format('ALTER %s %s OWNER TO %I', CASE
		WHEN i.type IN ('function', 'procedure', 'aggregate') THEN 'ROUTINE'
		WHEN i.type = 'composite type' THEN 'TYPE'
		WHEN i.type = 'statistics object' THEN 'STATISTICS'
		ELSE upper(replace(i.type, '-', ' ')) END, i.identity, pg_get_userbyid(d.refobjid))
FROM pg_shdepend d CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) i
WHERE d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND d.deptype = 'o' AND d.objsubid = 0
	AND d.classid NOT IN ('pg_extension'::regclass, 'pg_publication'::regclass, 'pg_user_mapping'::regclass, 'pg_default_acl'::regclass,
		'pg_largeobject'::regclass, 'pg_event_trigger'::regclass)
	AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = d.classid AND e.objid = d.objid AND e.deptype = 'e')
	AND NOT (d.classid = 'pg_class'::regclass AND EXISTS (SELECT FROM pg_class c JOIN pg_depend o ON o.classid = d.classid AND o.objid = c.oid
		WHERE c.oid = d.objid AND c.relkind = 'S' AND o.refclassid = 'pg_class'::regclass AND o.refobjsubid > 0 AND o.deptype IN ('a', 'i')))
	AND NOT (d.classid = 'pg_type'::regclass AND EXISTS (SELECT FROM pg_type t WHERE t.oid = d.objid AND t.typtype = 'm'))
	AND NOT (d.classid = 'pg_namespace'::regclass AND i.identity = 'public')
ORDER BY d.classid, d.objid`

// giveAway gives everything to whom it belongs in the source, and what is left of the maker's, the database among it, to the
// owner of the database. Nothing falls to a superuser: a SECURITY DEFINER function would become one, too.
func (c *schemaCopy) giveAway(ctx context.Context, from, to *pgx.Conn) error {
	rows, err := from.Query(ctx, ownersSQL)
	if err != nil {
		return err
	}
	statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	var owner string
	var public string // owner of the schema; "" when there is none
	err = from.QueryRow(ctx, `SELECT CASE WHEN r.rolsuper THEN $1 ELSE r.rolname::text END,
			coalesce((SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = 'public'), '')
		FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = current_database()`, GroupRole).Scan(&owner, &public)
	if err != nil {
		return err
	}
	if public != "" {
		statements = append(statements, "ALTER SCHEMA public OWNER TO "+quote(public))
	}
	statements = append(statements, "REASSIGN OWNED BY "+quote(c.maker)+" TO "+quote(owner), "DROP OWNED BY "+quote(c.maker))
	for _, sql := range statements {
		if _, err := to.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}
