package store

import (
	"context"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store/db"
)

func toRole(r db.Role) core.Role {
	return core.Role{
		BranchID: r.BranchID, Name: r.Name, Protected: r.Protected, NoLogin: r.NoLogin, Verifier: r.Verifier, Sealed: r.Sealed,
		CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt,
	}
}

// InsertRole adds a role; KindConflict when its name is taken.
func (q Q) InsertRole(ctx context.Context, r core.Role) (core.Role, error) {
	row, err := q.db.InsertRole(ctx, db.InsertRoleParams{
		BranchID: r.BranchID, Name: r.Name, Protected: r.Protected, NoLogin: r.NoLogin, Verifier: r.Verifier, Sealed: r.Sealed,
	})
	if taken(err, "roles_pkey") {
		return core.Role{}, core.Errorf(core.KindConflict, "ROLE_ALREADY_EXISTS", "a role named %q exists already on this branch", r.Name)
	}
	return one(row, err, toRole, "role", r.Name)
}

// Role returns one role of a branch.
func (q Q) Role(ctx context.Context, branchID, name string) (core.Role, error) {
	r, err := q.db.GetRole(ctx, db.GetRoleParams{BranchID: branchID, Name: name})
	return one(r, err, toRole, "role", name)
}

// Roles returns a branch's roles, oldest first.
func (q Q) Roles(ctx context.Context, branchID string) ([]core.Role, error) {
	r, err := q.db.ListRoles(ctx, branchID)
	return many(r, err, toRole)
}

// SetRolePassword stores a new verifier and, unless nil, the sealed password.
func (q Q) SetRolePassword(ctx context.Context, branchID, name, verifier string, sealed []byte) (core.Role, error) {
	r, err := q.db.SetRolePassword(ctx, db.SetRolePasswordParams{BranchID: branchID, Name: name, Verifier: verifier, Sealed: sealed})
	return one(r, err, toRole, "role", name)
}

// DeleteRole removes a role and returns it.
func (q Q) DeleteRole(ctx context.Context, branchID, name string) (core.Role, error) {
	r, err := q.db.DeleteRole(ctx, db.DeleteRoleParams{BranchID: branchID, Name: name})
	return one(r, err, toRole, "role", name)
}

func toDatabase(r db.Database) core.Database {
	return core.Database{ID: r.ID, BranchID: r.BranchID, Name: r.Name, OwnerName: r.OwnerName, CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt}
}

func databaseTaken(name string) error {
	return core.Errorf(core.KindConflict, "DATABASE_ALREADY_EXISTS", "a database named %q exists already on this branch", name)
}

// InsertDatabase adds a database; KindConflict when its name is taken.
func (q Q) InsertDatabase(ctx context.Context, branchID, name, owner string) (core.Database, error) {
	r, err := q.db.InsertDatabase(ctx, db.InsertDatabaseParams{BranchID: branchID, Name: name, OwnerName: owner})
	if taken(err, "databases_branch_id_name_key") {
		return core.Database{}, databaseTaken(name)
	}
	return one(r, err, toDatabase, "database", name)
}

// Database returns one database of a branch.
func (q Q) Database(ctx context.Context, branchID, name string) (core.Database, error) {
	r, err := q.db.GetDatabase(ctx, db.GetDatabaseParams{BranchID: branchID, Name: name})
	return one(r, err, toDatabase, "database", name)
}

// Databases returns a branch's databases, oldest first.
func (q Q) Databases(ctx context.Context, branchID string) ([]core.Database, error) {
	r, err := q.db.ListDatabases(ctx, branchID)
	return many(r, err, toDatabase)
}

// DatabasesOwnedBy returns the databases of a branch that a role owns.
func (q Q) DatabasesOwnedBy(ctx context.Context, branchID, role string) ([]core.Database, error) {
	r, err := q.db.ListDatabasesOwnedBy(ctx, db.ListDatabasesOwnedByParams{BranchID: branchID, OwnerName: role})
	return many(r, err, toDatabase)
}

// UpdateDatabase renames a database and sets its owner; KindConflict when the new name is taken.
func (q Q) UpdateDatabase(ctx context.Context, branchID, name, newName, owner string) (core.Database, error) {
	r, err := q.db.UpdateDatabase(ctx, db.UpdateDatabaseParams{BranchID: branchID, Name: name, NewName: newName, OwnerName: owner})
	if taken(err, "databases_branch_id_name_key") {
		return core.Database{}, databaseTaken(newName)
	}
	return one(r, err, toDatabase, "database", name)
}

// DeleteDatabase removes a database and returns it.
func (q Q) DeleteDatabase(ctx context.Context, branchID, name string) (core.Database, error) {
	r, err := q.db.DeleteDatabase(ctx, db.DeleteDatabaseParams{BranchID: branchID, Name: name})
	return one(r, err, toDatabase, "database", name)
}

// CopyCatalog gives a new branch its parent's roles and databases.
func (q Q) CopyCatalog(ctx context.Context, parentID, childID string) error {
	if err := q.db.CopyRoles(ctx, db.CopyRolesParams{Parent: parentID, Child: childID}); err != nil {
		return internal(err)
	}
	return internal(q.db.CopyDatabases(ctx, db.CopyDatabasesParams{Parent: parentID, Child: childID}))
}

// ReplaceCatalog makes a branch's roles and databases what the catalogs say: what is new is added, what is gone is
// removed, a stored password is forgotten when its verifier changed.
func (q Q) ReplaceCatalog(ctx context.Context, branchID string, roles []core.Role, databases []core.Database) error {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = r.Name
		if err := q.db.UpsertRole(ctx, db.UpsertRoleParams{BranchID: branchID, Name: r.Name, NoLogin: r.NoLogin, Verifier: r.Verifier}); err != nil {
			return internal(err)
		}
	}
	if err := q.db.DeleteRolesNotIn(ctx, db.DeleteRolesNotInParams{BranchID: branchID, Names: names}); err != nil {
		return internal(err)
	}
	names = make([]string, len(databases))
	for i, d := range databases {
		names[i] = d.Name
		if err := q.db.UpsertDatabase(ctx, db.UpsertDatabaseParams{BranchID: branchID, Name: d.Name, OwnerName: d.OwnerName}); err != nil {
			return internal(err)
		}
	}
	return internal(q.db.DeleteDatabasesNotIn(ctx, db.DeleteDatabasesNotInParams{BranchID: branchID, Names: names}))
}
