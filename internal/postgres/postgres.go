// Package postgres owns one stock PostgreSQL server: finding installed builds, making a cluster, its configuration files,
// its control data, and the roles and databases in its catalogs. It knows nothing of processes that outlive a call; that is
// the compute room's.
package postgres

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/boughdb/bough/internal/core"
)

// Names that every cluster made here has.
const (
	AdminRole       = "cloud_admin"    // bootstrap superuser; only the platform connects as it
	GroupRole       = "neon_superuser" // what API-made roles are members of
	DefaultOwner    = "neondb_owner"   // login role of the template
	DefaultDatabase = "neondb"         // database of the template, owned by DefaultOwner
	AdminDatabase   = "postgres"       // where the platform's own sessions connect
	SocketPort      = 5432             // number in the socket's file name; nothing listens on TCP

	maxNameBytes = 63 // NAMEDATALEN - 1
)

// SocketName is the file name of a server's socket inside its socket folder.
const SocketName = ".s.PGSQL.5432"

// checkName refuses what PostgreSQL would cut short or the platform keeps for itself.
func checkName(what, name string) error {
	switch {
	case name == "":
		return core.Invalidf("%s name must not be empty", what)
	case len(name) > maxNameBytes:
		return core.Invalidf("%s name is %d bytes long; the limit is %d", what, len(name), maxNameBytes)
	case strings.ContainsRune(name, 0):
		return core.Invalidf("%s name must not hold a zero byte", what)
	}
	return nil
}

// ReservedRole tells whether a role name belongs to PostgreSQL or the platform.
func ReservedRole(name string) bool {
	switch name {
	case AdminRole, GroupRole, "public", "none":
		return true
	}
	return strings.HasPrefix(name, "pg_")
}

// ReservedDatabase tells whether a database name belongs to PostgreSQL or the platform.
func ReservedDatabase(name string) bool {
	return name == AdminDatabase || name == "template0" || name == "template1"
}

func checkRole(name string) error {
	if err := checkName("role", name); err != nil {
		return err
	}
	if ReservedRole(name) {
		return core.Invalidf("role name %q is reserved", name)
	}
	return nil
}

func checkDatabase(name string) error {
	if err := checkName("database", name); err != nil {
		return err
	}
	if ReservedDatabase(name) {
		return core.Invalidf("database name %q is reserved", name)
	}
	return nil
}

// quote makes an identifier safe to put into SQL.
func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// sqlState returns the SQLSTATE of a server error, "" for anything else.
func sqlState(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// SQLSTATEs that the apply functions act on.
const (
	stateDuplicateObject   = "42710"
	stateDuplicateDatabase = "42P04"
	stateUndefinedObject   = "42704"
	stateUndefinedDatabase = "3D000"
	stateObjectInUse       = "55006"
	stateNotInPrerequisite = "55000"
	stateDependentObjects  = "2BP01"
	stateInvalidValue      = "22023"
	stateInvalidName       = "42602"
	stateUniqueViolation   = "23505" // two CREATEs of the same name that run side by side
)

// applyError gives a server error a kind that the caller can act on. Server messages of these states name only the user's
// own objects, so they may be shown.
func applyError(err error, op string) error {
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return core.Wrap(err, op, "")
	}
	var kind core.Kind
	code := ""
	switch e.Code {
	case stateDuplicateObject, stateDuplicateDatabase:
		kind = core.KindConflict
	case stateUndefinedObject, stateUndefinedDatabase:
		kind, code = core.KindNotFound, "RESOURCE_NOT_FOUND"
	case stateObjectInUse, stateNotInPrerequisite, stateDependentObjects:
		kind = core.KindUnprocessable
	default:
		return core.Wrap(err, op, "")
	}
	msg := e.Message
	if e.Detail != "" {
		msg += " (" + e.Detail + ")"
	}
	return &core.Error{Kind: kind, Code: code, Op: op, Message: msg, Err: err}
}
