package control

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// applyParams is what an apply_config operation does, to the catalog unless it says Reload. One field is set.
type applyParams struct {
	Reload         bool   `json:"reload,omitempty"` // the operation's endpoint takes its settings
	CreateRole     string `json:"create_role,omitempty"`
	SetPassword    string `json:"set_password,omitempty"` // of a role
	DropRole       string `json:"drop_role,omitempty"`
	CreateDatabase string `json:"create_database,omitempty"`
	UpdateDatabase string `json:"update_database,omitempty"` // its name before
	NewName        string `json:"new_name,omitempty"`        // of that database
	Owner          string `json:"owner,omitempty"`           // of the database made or updated
	DropDatabase   string `json:"drop_database,omitempty"`
}

// place binds a sealed password to its role's name; branches share the sealed form with their parents.
func place(role string) string { return "role:" + role }

// newPassword gives a role a fresh password, its verifier and, when the project stores passwords, the sealed form.
func (s *Service) newPassword(p core.Project, r core.Role) (core.Role, error) {
	var err error
	r.Password = core.NewPassword()
	if r.Verifier, err = postgres.ScramVerifier(r.Password); err != nil {
		return r, err
	}
	r.Sealed = nil
	if p.StorePasswords {
		r.Sealed = s.Sealer.Seal(r.Password, place(r.Name))
	}
	return r, nil
}

// openPassword returns a role's stored password, "" when there is none.
func (s *Service) openPassword(r core.Role) (string, error) {
	if len(r.Sealed) == 0 {
		return "", nil
	}
	return s.Sealer.Open(r.Sealed, place(r.Name))
}

// refreshCatalog brings the control database's copy of a branch's roles and databases up to date with the catalogs, when
// its compute runs. A sleeping branch's copy is true already.
func (s *Service) refreshCatalog(ctx context.Context, b core.Branch) error {
	id, ok, err := s.reachable(ctx, b.ID)
	if err != nil || !ok {
		return err
	}
	last, err := s.Store.LastOperation(ctx, b.ID)
	if err != nil {
		return err
	}
	var print string
	var catalog *postgres.Catalog
	err = s.Computes.Do(ctx, id, func(conn *pgx.Conn) (err error) {
		if print, err = postgres.Fingerprint(ctx, conn); err != nil {
			return err
		}
		if seen, ok := s.seen.Load(b.ID); ok && seen == print {
			return nil
		}
		c, err := postgres.ReadCatalog(ctx, conn)
		catalog = &c
		return err
	})
	if core.IsKind(err, core.KindUnavailable) {
		return nil // it stopped in between, and its copy was refreshed at that
	}
	if err != nil {
		if _, up, _ := s.reachable(ctx, b.ID); !up {
			return nil // likewise
		}
	}
	if err != nil || catalog == nil {
		return err
	}
	stored := false
	err = s.Store.Tx(ctx, func(q store.Q) error {
		if _, err := q.LockBranchByID(ctx, b.ID); err != nil {
			return err
		}
		// An operation that came after the catalog was read may have changed it, and the rows with it.
		if now, err := q.LastOperation(ctx, b.ID); err != nil || now != last {
			return err
		}
		stored, err = storeCatalog(ctx, q, b.ID, *catalog, "")
		return err
	})
	if err == nil && stored {
		s.seen.Store(b.ID, print)
	}
	return err
}

// storeCatalog replaces the control database's copy, unless changes to the catalog are queued besides the operation
// `except`: the rows are ahead of the catalog then. The caller holds the branch's lock.
func storeCatalog(ctx context.Context, q store.Q, branchID string, c postgres.Catalog, except string) (stored bool, err error) {
	pending, err := q.PendingOperations(ctx, branchID)
	if err != nil {
		return false, err
	}
	for _, op := range pending {
		if op.ID != except && (op.Action == core.ActionApplyConfig || op.Action == core.ActionCreateTimeline) {
			return false, nil
		}
	}
	roles := make([]core.Role, len(c.Roles))
	for i, r := range c.Roles {
		roles[i] = core.Role{Name: r.Name, NoLogin: !r.CanLogin, Verifier: r.Verifier}
	}
	databases := make([]core.Database, len(c.Databases))
	for i, d := range c.Databases {
		databases[i] = core.Database{Name: d.Name, OwnerName: d.Owner}
	}
	return true, q.ReplaceCatalog(ctx, branchID, roles, databases)
}

// catalogPatience is how long a call waits for changes of a catalog that it needs; clients try again after that.
const catalogPatience = 5 * time.Second

// catalogChanges lists the open operations that change a branch's roles and databases. The copy in the control database is
// ahead of the branch's data until they have ended.
func catalogChanges(ctx context.Context, q store.Q, branchID string) ([]core.Operation, error) {
	pending, err := q.PendingOperations(ctx, branchID)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(pending, func(op core.Operation) bool {
		var p applyParams
		return op.Action != core.ActionApplyConfig || (json.Unmarshal(op.Params, &p) == nil && p.Reload)
	}), nil
}

// awaitCatalog waits for the changes of a branch's catalog that are queued. Whether they are done is for the caller to see.
func (s *Service) awaitCatalog(ctx context.Context, branchID string) error {
	queued, err := catalogChanges(ctx, s.Store.Q, branchID)
	if err != nil {
		return err
	}
	patient, cancel := context.WithTimeout(ctx, catalogPatience)
	defer cancel()
	for _, op := range queued {
		_ = s.Queue.Wait(patient, op.ID) // failed, or not done in time
	}
	return ctx.Err()
}

// alter changes a branch's rows of roles or databases and queues the apply_config that does the same to the catalog.
func (s *Service) alter(ctx context.Context, c core.Caller, projectID, branchID string,
	fn func(q store.Q, p core.Project) (applyParams, error),
) ([]core.Operation, error) {
	return s.alterOnce(ctx, c, projectID, branchID, fn, nil)
}

// alterOnce is alter for a call that may have an Idempotency-Key; made is the use case's result, given the operations.
func (s *Service) alterOnce(ctx context.Context, c core.Caller, projectID, branchID string,
	fn func(q store.Q, p core.Project) (applyParams, error), made func(ops []core.Operation) any,
) ([]core.Operation, error) {
	project, branch, err := s.branch(ctx, c, projectID, branchID)
	if err != nil {
		return nil, err
	}
	if err := s.refreshCatalog(ctx, branch); err != nil {
		return nil, err
	}
	var ops []core.Operation
	err = s.Store.Tx(ctx, func(q store.Q) error {
		b, err := q.LockBranch(ctx, projectID, branchID)
		if err != nil {
			return err
		}
		if b.State != core.BranchReady && b.PendingState == "" {
			return core.Errorf(core.KindUnprocessable, "", "branch %s has no data: its creation failed; delete it", branchID)
		}
		params, err := fn(q, project)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(params)
		if err != nil {
			return core.Wrap(err, "control.alter", "")
		}
		endpoints, err := q.Endpoints(ctx, projectID, branchID)
		if err != nil {
			return err
		}
		op := newOperation(c, projectID, branchID, readWrite(endpoints).ID, core.ActionApplyConfig)
		op.Params = raw
		if ops, err = s.Queue.Enqueue(ctx, q, op); err != nil || made == nil {
			return err
		}
		return keep(ctx, q, c, made(ops))
	})
	if err != nil {
		return nil, err
	}
	s.seen.Delete(branchID)
	s.Queue.Kick(branchID)
	return ops, nil
}

// readWrite is the read_write endpoint among a branch's endpoints; its ID is "" when there is none.
func readWrite(list []core.Endpoint) core.Endpoint {
	for _, e := range list {
		if e.Type == core.EndpointReadWrite && !e.Deleting {
			return e
		}
	}
	return core.Endpoint{}
}

// ListDatabases returns a branch's databases, those made in SQL among them.
func (s *Service) ListDatabases(ctx context.Context, c core.Caller, projectID, branchID string) ([]core.Database, error) {
	_, b, err := s.branch(ctx, c, projectID, branchID)
	if err != nil {
		return nil, err
	}
	if err := s.refreshCatalog(ctx, b); err != nil {
		return nil, err
	}
	return s.Store.Databases(ctx, branchID)
}

// CreateDatabase makes a database that owner owns.
func (s *Service) CreateDatabase(ctx context.Context, c core.Caller, projectID, branchID, name, owner string) (DatabaseResult, error) {
	if err := checkDatabaseName(name); err != nil {
		return DatabaseResult{}, err
	}
	var out DatabaseResult
	var err error
	out.Operations, err = s.alterOnce(ctx, c, projectID, branchID, func(q store.Q, _ core.Project) (applyParams, error) {
		if err := ownerExists(ctx, q, branchID, owner); err != nil {
			return applyParams{}, err
		}
		var err error
		out.Database, err = q.InsertDatabase(ctx, branchID, name, owner)
		return applyParams{CreateDatabase: name, Owner: owner}, err
	}, func(ops []core.Operation) any { return DatabaseResult{out.Database, ops} })
	return out, err
}

func ownerExists(ctx context.Context, q store.Q, branchID, owner string) error {
	_, err := q.Role(ctx, branchID, owner)
	if core.IsKind(err, core.KindNotFound) {
		return core.Invalidf("owner_name: there is no role %q on this branch; create it first", clip(owner))
	}
	return err
}

// GetDatabase returns one database.
func (s *Service) GetDatabase(ctx context.Context, c core.Caller, projectID, branchID, name string) (core.Database, error) {
	_, b, err := s.branch(ctx, c, projectID, branchID)
	if err != nil {
		return core.Database{}, err
	}
	if err := s.refreshCatalog(ctx, b); err != nil {
		return core.Database{}, err
	}
	return s.Store.Database(ctx, branchID, name)
}

// UpdateDatabase renames a database or changes its owner.
func (s *Service) UpdateDatabase(ctx context.Context, c core.Caller, projectID, branchID, name string, p DatabasePatch) (DatabaseResult, error) {
	if p.Name != nil {
		if err := checkDatabaseName(*p.Name); err != nil {
			return DatabaseResult{}, err
		}
	}
	var out DatabaseResult
	var err error
	out.Operations, err = s.alter(ctx, c, projectID, branchID, func(q store.Q, _ core.Project) (applyParams, error) {
		d, err := q.Database(ctx, branchID, name)
		if err != nil {
			return applyParams{}, err
		}
		if p.Name != nil {
			d.Name = *p.Name
		}
		if p.OwnerName != nil {
			if err := ownerExists(ctx, q, branchID, *p.OwnerName); err != nil {
				return applyParams{}, err
			}
			d.OwnerName = *p.OwnerName
		}
		out.Database, err = q.UpdateDatabase(ctx, branchID, name, d.Name, d.OwnerName)
		return applyParams{UpdateDatabase: name, NewName: d.Name, Owner: d.OwnerName}, err
	})
	return out, err
}

// DeleteDatabase drops a database and ends its sessions.
func (s *Service) DeleteDatabase(ctx context.Context, c core.Caller, projectID, branchID, name string) (DatabaseResult, error) {
	var out DatabaseResult
	var err error
	out.Operations, err = s.alter(ctx, c, projectID, branchID, func(q store.Q, _ core.Project) (applyParams, error) {
		var err error
		out.Database, err = q.DeleteDatabase(ctx, branchID, name)
		return applyParams{DropDatabase: name}, err
	})
	return out, err
}

// ListRoles returns a branch's roles, those made in SQL among them.
func (s *Service) ListRoles(ctx context.Context, c core.Caller, projectID, branchID string) ([]core.Role, error) {
	_, b, err := s.branch(ctx, c, projectID, branchID)
	if err != nil {
		return nil, err
	}
	if err := s.refreshCatalog(ctx, b); err != nil {
		return nil, err
	}
	return s.Store.Roles(ctx, branchID)
}

// CreateRole makes a role; the result carries its password.
func (s *Service) CreateRole(ctx context.Context, c core.Caller, projectID, branchID string, p CreateRole) (RoleResult, error) {
	if err := checkRoleName(p.Name); err != nil {
		return RoleResult{}, err
	}
	var out RoleResult
	var err error
	out.Operations, err = s.alterOnce(ctx, c, projectID, branchID, func(q store.Q, project core.Project) (applyParams, error) {
		r := core.Role{BranchID: branchID, Name: p.Name, NoLogin: p.NoLogin}
		if !p.NoLogin {
			var err error
			if r, err = s.newPassword(project, r); err != nil {
				return applyParams{}, err
			}
		}
		saved, err := q.InsertRole(ctx, r)
		saved.Password = r.Password
		out.Role = saved
		return applyParams{CreateRole: p.Name}, err
	}, func(ops []core.Operation) any { return RoleResult{out.Role, ops} })
	return out, err
}

// role returns a role of a branch that the caller can see.
func (s *Service) role(ctx context.Context, c core.Caller, projectID, branchID, name string) (core.Project, core.Role, error) {
	p, b, err := s.branch(ctx, c, projectID, branchID)
	if err != nil {
		return p, core.Role{}, err
	}
	if err := s.refreshCatalog(ctx, b); err != nil {
		return p, core.Role{}, err
	}
	r, err := s.Store.Role(ctx, branchID, name)
	return p, r, err
}

// GetRole returns one role.
func (s *Service) GetRole(ctx context.Context, c core.Caller, projectID, branchID, name string) (core.Role, error) {
	_, r, err := s.role(ctx, c, projectID, branchID, name)
	return r, err
}

// DeleteRole drops a role that owns no database.
func (s *Service) DeleteRole(ctx context.Context, c core.Caller, projectID, branchID, name string) (RoleResult, error) {
	var out RoleResult
	var err error
	out.Operations, err = s.alter(ctx, c, projectID, branchID, func(q store.Q, _ core.Project) (applyParams, error) {
		owned, err := q.DatabasesOwnedBy(ctx, branchID, name)
		if err != nil {
			return applyParams{}, err
		}
		if len(owned) > 0 {
			return applyParams{}, core.Errorf(core.KindUnprocessable, "ROLE_OWNS_DATABASE",
				"role %q owns the database %q; delete it or give it another owner first", clip(name), owned[0].Name)
		}
		out.Role, err = q.DeleteRole(ctx, branchID, name)
		return applyParams{DropRole: name}, err
	})
	return out, err
}

// ResetPassword gives a role a new password; the result carries it.
func (s *Service) ResetPassword(ctx context.Context, c core.Caller, projectID, branchID, name string) (RoleResult, error) {
	var out RoleResult
	var err error
	out.Operations, err = s.alter(ctx, c, projectID, branchID, func(q store.Q, project core.Project) (applyParams, error) {
		r, err := q.Role(ctx, branchID, name)
		if err != nil {
			return applyParams{}, err
		}
		if r.NoLogin {
			return applyParams{}, core.Errorf(core.KindUnprocessable, "", "role %q cannot log in, so it has no password", clip(name))
		}
		if r, err = s.newPassword(project, r); err != nil {
			return applyParams{}, err
		}
		saved, err := q.SetRolePassword(ctx, branchID, name, r.Verifier, r.Sealed)
		saved.Password = r.Password
		out.Role = saved
		return applyParams{SetPassword: name}, err
	})
	return out, err
}

// RevealPassword returns a role's stored password; KindPrecondition when the project does not store passwords.
func (s *Service) RevealPassword(ctx context.Context, c core.Caller, projectID, branchID, name string) (string, error) {
	p, r, err := s.role(ctx, c, projectID, branchID, name)
	if err != nil {
		return "", err
	}
	if !p.StorePasswords {
		return "", core.Errorf(core.KindPrecondition, "", "project %s does not store passwords; reset the password to get a new one", projectID)
	}
	if len(r.Sealed) == 0 {
		return "", core.NotFoundf("the password of role %q is not known here: it was set in SQL, or the role has none; reset it to get a new one", clip(name))
	}
	return s.openPassword(r)
}
