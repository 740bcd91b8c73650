"""Contacts as MuJoCo has them.

Friction is a pyramid along two tangents of a contact. MuJoCo lays the first one along a capsule
that touches a plane, however the capsule stands; MuJoCo Warp 4.0 does so of those that lean more
than 30 degrees from the normal, and turns the pyramid under the others, such as an ant's feet.
"""
# mypy: ignore-errors

import functools


@functools.cache
def _kernel():
    """What Warp compiles; made where Warp is there."""
    import mujoco
    import warp as wp

    plane_kind = wp.constant(int(mujoco.mjtGeom.mjGEOM_PLANE))
    capsule_kind = wp.constant(int(mujoco.mjtGeom.mjGEOM_CAPSULE))

    @wp.kernel
    def lay_along_capsules(
        contacts: wp.array(dtype=int),
        geoms: wp.array(dtype=wp.vec2i),
        worlds: wp.array(dtype=int),
        kinds: wp.array(dtype=int),
        poses: wp.array2d(dtype=wp.mat33),
        frames: wp.array(dtype=wp.mat33),
    ):
        """Turn the frames of contacts, whose rows are normal and tangents, of planes and
        capsules."""
        i = wp.tid()
        if i >= contacts[0]:
            return
        plane, capsule = geoms[i][0], geoms[i][1]
        if kinds[plane] != plane_kind or kinds[capsule] != capsule_kind:
            return
        pose = poses[worlds[i], capsule]
        axis = wp.vec3(pose[0, 2], pose[1, 2], pose[2, 2])
        normal = wp.vec3(frames[i][0, 0], frames[i][0, 1], frames[i][0, 2])
        along = axis - normal * wp.dot(normal, axis)
        if wp.length(along) < 1e-6:  # it points wherever rounding has it
            return
        along = wp.normalize(along)
        frames[i] = wp.matrix_from_rows(normal, along, wp.cross(normal, along))

    return lay_along_capsules


def as_mujoco(model, data) -> None:
    """For `Model.callback.contactfilter` of MuJoCo Warp."""
    import warp as wp

    contact = data.contact
    wp.launch(
        _kernel(),
        dim=data.naconmax,
        inputs=[data.nacon, contact.geom, contact.worldid, model.geom_type, data.geom_xmat],
        outputs=[contact.frame],
    )
