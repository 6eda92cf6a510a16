package control

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/ops"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// applyConfig changes roles and databases in the catalog, or the settings of a running compute. For the first, a sleeping branch is woken for it, and sleeps again.
func (s *Service) applyConfig(ctx context.Context, b core.Branch, op core.Operation) (ops.Commit, error) {
	if b.Deleting {
		return nil, nil
	}
	var params applyParams
	if err := json.Unmarshal(op.Params, &params); err != nil {
		return nil, core.Wrap(err, "control.apply", "")
	}
	if params.Reload {
		return s.reload(ctx, b, op.EndpointID)
	}
	id, awake, err := s.running(ctx, b.ID)
	if err != nil {
		return nil, err
	}
	var first ops.Commit
	if !awake {
		endpoints, err := s.Store.BranchEndpoints(ctx, b.ID)
		if err != nil {
			return nil, err
		}
		id = b.ID
		if err := s.full.check(); err != nil {
			return nil, err
		}
		spec, err := s.spec(ctx, b, id, readWrite(endpoints))
		if err != nil {
			return nil, err
		}
		spec.IdleTimeout = -1
		if _, first, err = s.up(ctx, b, spec); err != nil {
			return nil, err
		}
	}
	catalog, err := s.applyTo(ctx, b, id, params)
	if err != nil {
		if !awake {
			err = errors.Join(err, s.Computes.Stop(context.WithoutCancel(ctx), id, compute.StopFast))
		}
		return nil, err
	}
	var last ops.Commit
	if !awake || id == b.ID {
		if last, err = s.down(ctx, b, id); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, q store.Q) error {
		for _, commit := range []ops.Commit{first, last} {
			if commit != nil {
				if err := commit(ctx, q); err != nil {
					return err
				}
			}
		}
		if _, err := q.LockBranchByID(ctx, b.ID); err != nil {
			return err
		}
		_, err := storeCatalog(ctx, q, b.ID, catalog, op.ID)
		return err
	}, nil
}

func (s *Service) applyTo(ctx context.Context, b core.Branch, computeID string, p applyParams) (postgres.Catalog, error) {
	conn, err := s.Computes.Conn(ctx, computeID, postgres.AdminDatabase)
	if err != nil {
		return postgres.Catalog{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	switch {
	case p.CreateRole != "":
		var r core.Role
		if r, err = s.Store.Role(ctx, b.ID, p.CreateRole); err == nil {
			err = postgres.CreateRole(ctx, conn, postgres.RoleSpec{Name: r.Name, Verifier: r.Verifier, NoLogin: r.NoLogin})
		}
	case p.SetPassword != "":
		var r core.Role
		if r, err = s.Store.Role(ctx, b.ID, p.SetPassword); err == nil {
			err = postgres.SetRoleVerifier(ctx, conn, r.Name, r.Verifier)
		}
	case p.DropRole != "":
		err = postgres.DropRole(ctx, conn, p.DropRole)
	case p.CreateDatabase != "":
		err = postgres.CreateDatabase(ctx, conn, p.CreateDatabase, p.Owner)
	case p.UpdateDatabase != "":
		if p.NewName != p.UpdateDatabase {
			err = postgres.RenameDatabase(ctx, conn, p.UpdateDatabase, p.NewName)
		}
		if err == nil {
			err = postgres.SetDatabaseOwner(ctx, conn, p.NewName, p.Owner)
		}
	case p.DropDatabase != "":
		err = postgres.DropDatabase(ctx, conn, p.DropDatabase)
	}
	if core.IsKind(err, core.KindNotFound) && (p.CreateRole != "" || p.SetPassword != "") {
		err = nil // deleted by a call behind this one
	}
	if err != nil {
		return postgres.Catalog{}, err
	}
	return postgres.ReadCatalog(ctx, conn)
}
